-- Revokes an exclusive lock gracefully: changes its value, and keeps its expiry.
--
-- KEYS: lock
-- ARGV: the value of the holder, and `again` or nothing (shared/revocation.lua)
-- Returns the ms until the lock expires (-1: never), or GONE.
local lock, value, again = KEYS[1], ARGV[1], ARGV[2] == AGAIN
local holder, failure = value_of(lock)
if failure then
  return failure
end
local was_revoked = again and holder == REVOKED .. value
if holder ~= value and not was_revoked then
  return GONE
end
local left = redis.call('PTTL', lock)
if not begins(holder, REVOKED) then
  redis.call('SET', lock, REVOKED .. value, 'XX', 'KEEPTTL')
end
return left
