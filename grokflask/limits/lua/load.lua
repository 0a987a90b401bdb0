-- Stores a key's spending (KEYS 1) where it is missing, and deletes the sums of old days and months.
-- ARGV: now, how long it is all kept, the oldest month to keep; then pairs of a day or month and its ticks.
-- A sum's time of loading is beside it, under its name and "@".

local now, keep_s, oldest = ARGV[1], ARGV[2], ARGV[3]

for _, name in ipairs(redis.call("HKEYS", KEYS[1])) do
  if string.sub(name, 1, 7) < oldest then
    redis.call("HDEL", KEYS[1], name)
  end
end
for at = 4, #ARGV, 2 do
  if redis.call("HEXISTS", KEYS[1], ARGV[at]) == 0 then
    redis.call("HSET", KEYS[1], ARGV[at], ARGV[at + 1], ARGV[at] .. "@", now)
  end
end
redis.call("EXPIRE", KEYS[1], keep_s)
