-- Breaks a shared lock or a permit gently: the member is renamed and keeps its deadline.
-- KEYS: readers or permits. ARGV: member. -2: it holds no more; else the ms left.
-- ARGV[2]: this is sent once more, and may have worked before.
local set, member, time = KEYS[1], ARGV[1], redis.call('TIME')
local score = redis.call('ZSCORE', set, member)
if ARGV[2] and not score then
  member = 'broken:' .. member
  score = redis.call('ZSCORE', set, member)
end
local left = score and score - (time[1] * 1000 + math.floor(time[2] / 1000))
if not left or left <= 0 then
  return -2
end
if string.sub(member, 1, 7) ~= 'broken:' then
  redis.call('ZREM', set, member)
  redis.call('ZADD', set, score, 'broken:' .. member)
end
return left
