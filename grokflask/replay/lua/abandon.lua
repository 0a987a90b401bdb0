-- Frees the name and deletes the attempt, unless another worker has a reader; 1 if it did.
-- KEYS: the name's record; its readers; the attempt's stream. ARGV: id, now.

local NAME, READERS, STREAM = KEYS[1], KEYS[2], KEYS[3]

if redis.call("HGET", NAME, "id") == ARGV[1] then
  redis.call("ZREMRANGEBYSCORE", READERS, "-inf", ARGV[2])
  if redis.call("ZCARD", READERS) > 0 then
    return 0
  end
  redis.call("DEL", NAME)
end
redis.call("DEL", STREAM)
return 1
