-- Renews a worker and its leases; restores leases that were lost. After leases.lua.
-- ARGV: now, the new expiry, worker, its slots; then for each lease: id, key, stream, tokens, ticks.

local WORKERS = KEYS[7]    -- sorted set: worker -> when it counts as dead
local CAPACITIES = KEYS[8] -- hash: worker -> its slots

local now, expiry, worker, capacity = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

redis.call("ZADD", WORKERS, expiry, worker)
redis.call("HSET", CAPACITIES, worker, capacity)
drop_dead_workers(WORKERS, CAPACITIES, now)
for at = 5, #ARGV, 5 do
  local id = ARGV[at]
  if redis.call("HEXISTS", LEASES, id) == 1 then
    redis.call("ZADD", EXPIRIES, expiry, id)
  else
    hold(id, expiry, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
  end
end
