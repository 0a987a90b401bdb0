-- Takes the name for a new attempt, or finds the attempt that has it and registers this worker as its reader.
-- KEYS: the name's record; its readers (sorted set: worker other than the writer -> until when it reads).
-- ARGV: worker, until when it reads, lease in ms, fingerprint; id ("" to begin no attempt), request id and grace
-- of a new attempt. Returns these three of the attempt that has the name and whether it took it now, or one word.

local NAME, READERS = KEYS[1], KEYS[2]
local worker, until_, lease, fingerprint = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local id, request_id, grace_s = ARGV[5], ARGV[6], ARGV[7]
local found = redis.call("HMGET", NAME, "id", "request_id", "grace_s", "fingerprint", "state")

if not found[1] then
  if id == "" then
    return { "gone" }
  end
  redis.call("HSET", NAME, "id", id, "request_id", request_id, "grace_s", grace_s,
    "fingerprint", fingerprint, "state", "running")
  redis.call("PEXPIRE", NAME, lease)
  redis.call("DEL", READERS)
  return { id, request_id, grace_s, "taken" }
elseif found[4] ~= fingerprint then
  return { "reused" }
elseif found[5] == "unkept" then
  return { "in use" }
end
redis.call("ZADD", READERS, until_, worker)
redis.call("PEXPIRE", READERS, lease)
return { found[1], found[2], found[3], "found" }
