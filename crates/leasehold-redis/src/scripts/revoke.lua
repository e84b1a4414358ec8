-- Revokes an exclusive lock gracefully: changes its value and keeps its expiry, so that the holder
-- can neither renew nor release it. KEYS: lock. ARGV: the value of the holder, and optionally
-- anything if this is sent again and may have succeeded before. Returns -2 if the holder no longer
-- holds the lock, and otherwise the ms until it expires (-1: never).
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
