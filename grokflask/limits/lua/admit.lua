-- Reserves everything that a request needs, or nothing. After leases.lua.
-- Returns {"granted", open streams, tokens left or false, tokens held, ticks held}, {"unloaded"}, or
-- {reason, used, limit, bucket or false}.

local WORKERS = KEYS[7]    -- sorted set: worker -> when it counts as dead
local CAPACITIES = KEYS[8] -- hash: worker -> its slots
local MINUTE = KEYS[9]     -- hash: bucket of seconds -> tokens used
local SPENT = KEYS[10]     -- hash: day or month -> ticks spent

local now, expiry, id, key = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local stream, tokens, ticks = ARGV[5], ARGV[6], ARGV[7]
local day, month, oldest = ARGV[8], ARGV[9], tonumber(ARGV[10])
local max_streams, max_tokens = tonumber(ARGV[11]), tonumber(ARGV[12]) -- nil where there is no limit
local budget_day, budget_month = tonumber(ARGV[13]), tonumber(ARGV[14])
local capacity, fair_share = tonumber(ARGV[15]), tonumber(ARGV[16])
local least_tokens, least_ticks = tonumber(ARGV[17]), tonumber(ARGV[18]) -- where more does not fit
local alone_tokens, alone_ticks = tonumber(ARGV[19]), tonumber(ARGV[20]) -- for a key with nothing else open

local alone

local function check_share()
  local open, total = read(OPEN, key), redis.call("ZCARD", EXPIRIES)
  if open == 0 or total < fair_share * capacity then
    return nil -- the key has nothing open, or too few slots are in use: `slots` below is at least `capacity`
  end
  drop_dead_workers(WORKERS, CAPACITIES, now)
  local slots = 0
  for _, each in ipairs(redis.call("HVALS", CAPACITIES)) do
    slots = slots + tonumber(each)
  end
  slots = math.max(slots, capacity)
  if total < fair_share * slots then
    return nil
  end
  local share = math.max(1, math.floor(slots / redis.call("HLEN", OPEN)))
  return open >= share and {"share", open, share, false} or nil
end

local function check_streams()
  if stream == "0" or not max_streams then
    return nil
  end
  local open = read(STREAMS, key)
  return open >= max_streams and {"streams", open, max_streams, false} or nil
end

local function check_tokens()
  if not max_tokens then
    return nil
  end
  local used, buckets = read_minute(MINUTE, oldest)
  local all = used + read(TOKENS, key)
  if all + tokens <= max_tokens then
    return nil
  end
  local least = alone and alone_tokens or least_tokens
  if all + least <= max_tokens then
    tokens = write(max_tokens - all)
    return nil
  end
  table.sort(buckets, function(a, b) return a[1] < b[1] end)
  local surplus, last = used + least - max_tokens, false
  for _, bucket in ipairs(buckets) do
    if surplus > 0 then
      surplus, last = surplus - bucket[2], bucket[1]
    end
  end
  return {"tokens", all, max_tokens, last}
end

local function check_budget(reason, budget, spent, held)
  if not budget then
    return nil
  end
  -- A request without a known cost is admitted until the budget is spent.
  local least = alone and alone_ticks or least_ticks
  local left = budget - spent - held
  if budget > 0 and spent < budget and (least == 0 or least <= left) then
    if tonumber(ticks) > left then
      ticks = write(math.max(0, left))
    end
    return nil
  end
  return {reason, spent + held, budget, false}
end

local function check_budgets()
  if not (budget_day or budget_month) then
    return nil
  end
  local sums = redis.call("HMGET", SPENT, day, month)
  if (budget_day and not sums[1]) or (budget_month and not sums[2]) then
    return {"unloaded"}
  end
  local held = read(TICKS, key)
  return check_budget("budget_day", budget_day, tonumber(sums[1] or 0), held)
    or check_budget("budget_month", budget_month, tonumber(sums[2] or 0), held)
end

release_lapsed(now)
local lease = read_lease(id)
if not lease then
  alone = read(OPEN, key) == 0
  local obstacle = check_share() or check_streams() or check_tokens() or check_budgets()
  if obstacle then
    return obstacle
  end
  hold(id, expiry, key, stream, tokens, ticks)
  lease = {stream, tokens, ticks}
end
local left = false
if max_tokens then
  left = max_tokens - read_minute(MINUTE, oldest) - read(TOKENS, key)
end
return {"granted", read(STREAMS, key), left, tonumber(lease[2]), tonumber(lease[3])}
