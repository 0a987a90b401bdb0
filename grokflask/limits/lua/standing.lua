-- What a key has open and has used. After leases.lua. KEYS 7 and 8: its minute, and what it has spent.
-- ARGV: now, key, day, month, the oldest bucket that counts.
-- Returns {open streams, tokens used and held, ticks held, ticks of the day or false, of the month or false}.

local key = ARGV[2]
release_lapsed(ARGV[1])
local used = read_minute(KEYS[7], tonumber(ARGV[5]))
local sums = redis.call("HMGET", KEYS[8], ARGV[3], ARGV[4])
return {
  read(STREAMS, key),
  used + read(TOKENS, key),
  read(TICKS, key),
  sums[1] and tonumber(sums[1]),
  sums[2] and tonumber(sums[2]),
}
