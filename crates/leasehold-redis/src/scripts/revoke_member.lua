-- Revokes a shared lock or a permit gracefully: renames the member, which keeps its expiry. KEYS:
-- readers or permits. ARGV: member, and optionally anything if this is sent again and may have
-- succeeded before. Returns -2 if the holder no longer holds, and otherwise the ms until it
-- expires.
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
