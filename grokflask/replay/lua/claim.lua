-- Under this name: a new attempt of this worker, or what is there already, to be read along.
-- KEYS: what is known of the name; its readers (sorted set: worker -> until when, other than the carrier).
-- ARGV: now, until when this worker reads it, worker, fingerprint, id ("" for no new one), request id, lease.

local NAME, READERS = KEYS[1], KEYS[2]
local now, until_, worker, fingerprint, id = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local found = redis.call("HMGET", NAME, "id", "fingerprint", "state", "request_id")

if not found[1] then
  if id == "" then
    return { "gone" }
  end
  redis.call("HSET", NAME, "id", id, "fingerprint", fingerprint, "state", "running", "request_id", ARGV[6])
  redis.call("PEXPIRE", NAME, ARGV[7])
  redis.call("DEL", READERS)
  return { "new" }
end
if found[2] ~= fingerprint then
  return { "reused" }
end
if found[3] == "unkept" then
  return { "in use" }
end
redis.call("ZADD", READERS, until_, worker)
redis.call("PEXPIRE", READERS, ARGV[7])
return { "found", found[1], found[4] }
