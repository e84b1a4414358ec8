-- Renews an exclusive lock if it is still ours. KEYS: lock. ARGV: value, ttl in ms. 1: renewed, 0: it was not ours.
-- GETEX without options is a GET that counts as a write: it arms no push.
if redis.pcall('GETEX', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
