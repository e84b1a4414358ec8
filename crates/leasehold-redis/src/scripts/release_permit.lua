-- Releases a permit, even if it was revoked.
--
-- KEYS: permits
-- ARGV: member
-- Returns 1 if it was released, 0 if it was not held.
local permits, member = KEYS[1], ARGV[1]
expire_members(permits)
return redis.call('ZREM', permits, member, REVOKED .. member)
