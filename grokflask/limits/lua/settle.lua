-- Frees leases and books what was used. After leases.lua.
-- KEYS from 8 on: for each settlement the key's minute and what it has spent.
-- ARGV: how long the worker's seq is kept, the oldest bucket that counts, the slack of a sum's loading, how
-- long a minute is kept; then for each settlement: seq, lease, bucket or "", tokens, ticks, day, month, time.

local SEQ = KEYS[7] -- the highest seq of this worker that was applied

local seq_s, oldest, slack_s, minute_s = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local MOST_BUCKETS = 26

local function use(minute, bucket, tokens)
  redis.call("HINCRBY", minute, bucket, tokens)
  redis.call("EXPIRE", minute, minute_s)
  if redis.call("HLEN", minute) > MOST_BUCKETS then
    read_minute(minute, oldest)
  end
end

local function spend(spent, name, ticks, settled_at)
  local sum = redis.call("HMGET", spent, name, name .. "@")
  if sum[1] and settled_at >= tonumber(sum[2]) - slack_s then
    redis.call("HINCRBY", spent, name, ticks)
  end
end

local last = redis.call("GET", SEQ) or "-1"
for i = 0, (#ARGV - 4) / 8 - 1 do
  local at = 4 + 8 * i
  local seq, id, bucket, tokens = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local ticks, day, month, settled_at = ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], tonumber(ARGV[at + 8])
  if tonumber(seq) > tonumber(last) then
    last = seq
    release(id)
    if bucket ~= "" then
      use(KEYS[8 + 2 * i], bucket, tokens)
    end
    if ticks ~= "0" then
      spend(KEYS[9 + 2 * i], day, ticks, settled_at)
      spend(KEYS[9 + 2 * i], month, ticks, settled_at)
    end
  end
end
redis.call("SET", SEQ, last, "EX", seq_s)
