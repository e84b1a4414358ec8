-- Renews an exclusive lock if it still has this value.
--
-- KEYS: lock
-- ARGV: value, ttl in ms
-- Returns 1 if it was renewed, 0 if it had another value, WAS_REVOKED.
local lock, value, ttl = KEYS[1], ARGV[1], ARGV[2]
local holder, failure = value_of(lock)
if failure then
  return failure
elseif holder == value then
  return redis.call('PEXPIRE', lock, ttl)
end
return holder == REVOKED .. value and WAS_REVOKED or 0
