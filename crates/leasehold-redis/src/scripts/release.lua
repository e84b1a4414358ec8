-- Gives back an exclusive lock if it is still ours. KEYS: lock. ARGV: value. 1: freed, 0: it was not ours.
-- GETEX without options is a GET that counts as a write: it arms no push. A key of another type is not ours.
if redis.pcall('GETEX', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
