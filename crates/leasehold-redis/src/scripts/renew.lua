-- Renews an exclusive lock if it still has this value. KEYS: lock. ARGV: value, ttl in ms. Returns
-- 1 if it was renewed, 0 if it had another value. GETEX without options is a GET that counts as a
-- write, so it arms no notification. A key of another type counts as another value. Any other
-- error, such as that of a server that accepts no writes, is returned: the outcome is unknown.
local seen = redis.pcall('GETEX', KEYS[1])
if seen == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if type(seen) == 'table' and not string.find(seen.err, 'WRONGTYPE', 1, true) then
  return seen
end
return 0
