-- Functions shared by the operations on leases; each script begins with this file.
-- Numbers stay text as received: Lua would print 10^15 as 1e+15.

local EXPIRIES = KEYS[1] -- sorted set: lease -> when it lapses
local LEASES = KEYS[2]   -- hash: lease -> "stream tokens ticks key"
local OPEN = KEYS[3]     -- these four are hashes: key -> what all its leases hold; no entry is none
local STREAMS = KEYS[4]
local TOKENS = KEYS[5]
local TICKS = KEYS[6]

local function add(held, key, amount)
  if amount ~= "0" then
    redis.call("HINCRBY", held, key, amount)
  end
end

local function subtract(held, key, amount)
  if amount ~= "0" and redis.call("HINCRBY", held, key, "-" .. amount) <= 0 then
    redis.call("HDEL", held, key)
  end
end

local function write(number)
  return string.format("%.0f", number)
end

-- A lease's stream, tokens, ticks and key; nil if there is none.
local function read_lease(id)
  local lease = redis.call("HGET", LEASES, id)
  return lease and {string.match(lease, "^(%d+) (%d+) (%d+) (.*)$")}
end

local function hold(id, expiry, key, stream, tokens, ticks)
  redis.call("ZADD", EXPIRIES, expiry, id)
  redis.call("HSET", LEASES, id, stream .. " " .. tokens .. " " .. ticks .. " " .. key)
  add(OPEN, key, "1")
  add(STREAMS, key, stream)
  add(TOKENS, key, tokens)
  add(TICKS, key, ticks)
end

local function release(id)
  redis.call("ZREM", EXPIRIES, id)
  local lease = read_lease(id)
  if not lease then
    return
  end
  redis.call("HDEL", LEASES, id)
  local stream, tokens, ticks, key = unpack(lease)
  subtract(OPEN, key, "1")
  subtract(STREAMS, key, stream)
  subtract(TOKENS, key, tokens)
  subtract(TICKS, key, ticks)
end

local function release_lapsed(now)
  for _, id in ipairs(redis.call("ZRANGEBYSCORE", EXPIRIES, "-inf", now)) do
    release(id)
  end
end

local function drop_dead_workers(workers, capacities, now)
  for _, worker in ipairs(redis.call("ZRANGEBYSCORE", workers, "-inf", now)) do
    redis.call("ZREM", workers, worker)
    redis.call("HDEL", capacities, worker)
  end
end

local function read(held, key)
  return tonumber(redis.call("HGET", held, key) or 0)
end

-- The tokens of a minute's buckets from `oldest` on, with those buckets; older ones are dropped.
local function read_minute(minute, oldest)
  local used, buckets = 0, {}
  local fields = redis.call("HGETALL", minute)
  for i = 1, #fields, 2 do
    local bucket, tokens = tonumber(fields[i]), tonumber(fields[i + 1])
    if bucket >= oldest then
      used = used + tokens
      buckets[#buckets + 1] = {bucket, tokens}
    else
      redis.call("HDEL", minute, fields[i])
    end
  end
  return used, buckets
end
