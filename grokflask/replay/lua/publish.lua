-- More of an attempt, as entries of its stream; and its lease, or how long it is kept.
-- KEYS: what is known of the name; the attempt's stream.
-- ARGV: id, state, milliseconds; then for each entry: its id, field, value.
-- 1 when done, 0 when the name is no longer this attempt's.

local NAME, STREAM = KEYS[1], KEYS[2]

if redis.call("HGET", NAME, "id") ~= ARGV[1] then
  return 0
end
for at = 4, #ARGV, 3 do
  local added = redis.pcall("XADD", STREAM, ARGV[at], ARGV[at + 1], ARGV[at + 2])
  -- Its id says where it belongs: what is there already has come twice.
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
