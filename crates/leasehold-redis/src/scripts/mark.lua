-- Breaks an exclusive lock gently: another value under the same deadline, so that the holder can
-- neither renew nor release it. KEYS: lock. ARGV: the value that the holder was seen with. -2: it
-- holds no more; else the ms left (-1: no end). ARGV[2]: this is sent once more, and may have
-- worked before.
local lock, value = KEYS[1], ARGV[1]
local seen = redis.pcall('GETEX', lock)
if ARGV[2] and seen == 'broken:' .. value then
  value = seen
end
if seen ~= value then
  if type(seen) == 'table' and not string.find(seen.err, 'WRONGTYPE', 1, true) then
    return seen
  end
  return -2
end
local left = redis.call('PTTL', lock)
if string.sub(value, 1, 7) ~= 'broken:' then
  redis.call('SET', lock, 'broken:' .. value, 'XX', 'KEEPTTL')
end
return left
