-- Renews a permit.
--
-- KEYS: permits
-- ARGV: member, ttl in ms
-- Returns 1 if it was renewed, 0 if it was not held, WAS_REVOKED.
local permits, member, ttl = KEYS[1], ARGV[1], ARGV[2] + 0
expire_members(permits)
if not has_member(permits, member) then
  return has_member(permits, REVOKED .. member) and WAS_REVOKED or 0
end
hold(permits, member, ttl)
return 1
