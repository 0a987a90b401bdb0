-- Appends entries to an attempt's stream and renews its lease, or sets how long it is kept; 0 if it lost its name.
-- KEYS: the name's record; its readers; the attempt's stream. ARGV: id; state (running, unkept: running but too
-- large to be shared, ended, failed); ms; id and value of each entry.

local NAME, STREAM = KEYS[1], KEYS[3]

if redis.call("HGET", NAME, "id") ~= ARGV[1] then
  return 0
end
for at = 4, #ARGV, 2 do
  local added = redis.pcall("XADD", STREAM, ARGV[at], "v", ARGV[at + 1])
  -- An entry that is there already was published twice.
  if type(added) == "table" and added.err and not string.find(added.err, "equal or smaller", 1, true) then
    return added
  end
end
redis.call("PEXPIRE", STREAM, ARGV[3])
if ARGV[2] == "failed" then
  redis.call("DEL", NAME)
else
  redis.call("HSET", NAME, "state", ARGV[2])
  redis.call("PEXPIRE", NAME, ARGV[3])
end
return 1
