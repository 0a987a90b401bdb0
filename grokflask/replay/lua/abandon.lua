-- The carrier has no reader of its own: frees the name if no other worker has one, and then gives 1.
-- KEYS: what is known of the name; its readers. ARGV: id, now.

local NAME, READERS = KEYS[1], KEYS[2]

redis.call("ZREMRANGEBYSCORE", READERS, "-inf", ARGV[2])
if redis.call("ZCARD", READERS) > 0 then
  return 0
end
if redis.call("HGET", NAME, "id") == ARGV[1] then
  redis.call("DEL", NAME)
end
return 1
