-- Renews a shared lock.
--
-- KEYS: lock, readers
-- ARGV: value, ttl in ms
-- Returns 1 if it was renewed, 0 if it was not held, WAS_REVOKED.
local lock, readers = KEYS[1], KEYS[2]
local value, ttl = ARGV[1], ARGV[2] + 0
-- This write comes first and is not protected: on a server that accepts no writes, such as a
-- replica, the script fails and the outcome is unknown.
expire_members(readers)
if not begins(value_of(lock), SHARED) then
  return 0
elseif not has_member(readers, value) then
  return has_member(readers, REVOKED .. value) and WAS_REVOKED or 0
end
hold(readers, value, ttl)
if redis.call('PTTL', lock) < ttl then
  redis.call('PEXPIRE', lock, ttl)
end
return 1
