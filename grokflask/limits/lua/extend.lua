-- Lets a lease hold more ticks, as far as the budgets have them. After leases.lua. KEYS 7: what its key has spent.
-- ARGV: now, id, key, ticks held so far and to hold then, day, month, the budgets of both or "".
-- Returns the ticks that are held then, or false if the sums are not loaded.

local now, id, key, held, ticks = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local budgets = {tonumber(ARGV[8]), tonumber(ARGV[9])} -- nil where there is no limit

release_lapsed(now)
local lease = read_lease(id)
held = tonumber(lease and lease[3] or held)
local step = ticks - held
local wanted = step
local sums = redis.call("HMGET", KEYS[7], ARGV[6], ARGV[7])
for i = 1, 2 do
  if budgets[i] then
    if not sums[i] then
      return false
    end
    step = math.min(step, budgets[i] - tonumber(sums[i]) - read(TICKS, key))
  end
end
if step <= 0 or 4 * step < wanted then
  return held
end
if lease then
  redis.call("HSET", LEASES, id, lease[1] .. " " .. lease[2] .. " " .. write(held + step) .. " " .. lease[4])
  add(TICKS, key, write(step))
end
return held + step
