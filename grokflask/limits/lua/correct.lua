-- Adds to what a key (KEYS 1) has spent, as far as that is loaded. ARGV: pairs of a day or month and ticks.

for at = 1, #ARGV, 2 do
  if redis.call("HEXISTS", KEYS[1], ARGV[at]) == 1 then
    redis.call("HINCRBY", KEYS[1], ARGV[at], ARGV[at + 1])
  end
end
