-- Releases a shared lock, even if it was revoked.
--
-- KEYS: lock, readers
-- ARGV: value
-- Returns 1 if it was released, 0 if it was not held.
local lock, readers, value = KEYS[1], KEYS[2], ARGV[1]
expire_members(readers)
if redis.call('ZREM', readers, value, REVOKED .. value) == 0 or not begins(value_of(lock), SHARED) then
  return 0
end
-- The key expires with the last reader, except for rounding. If the expiry does not change, no
-- waiter is notified.
local ROUNDING = 5
local last = redis.call('ZREVRANGE', readers, 0, 0, 'WITHSCORES')[2]
if not last then
  redis.call('DEL', lock)
elseif redis.call('PTTL', lock) > last - NOW + ROUNDING then
  redis.call('PEXPIRE', lock, last - NOW)
end
return 1
