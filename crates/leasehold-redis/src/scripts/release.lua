-- Gives back an exclusive lock if it is still ours. KEYS: lock. ARGV: value. 1: freed, 0: it was
-- not ours. GETEX without options is a GET that counts as a write: it arms no push. A key of
-- another type is not ours; any other error (a server that takes no writes now) leaves it open.
local seen = redis.pcall('GETEX', KEYS[1])
if seen == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
if type(seen) == 'table' and not string.find(seen.err, 'WRONGTYPE', 1, true) then
  return seen
end
return 0
