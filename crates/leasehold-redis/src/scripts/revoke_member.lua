-- Revokes a shared lock or a permit gracefully: renames the member, which keeps its expiry.
--
-- KEYS: readers or permits
-- ARGV: member, and `again` or nothing (shared/revocation.lua)
-- Returns the ms until the holder's lock expires, or GONE.
local set, member, again = KEYS[1], ARGV[1], ARGV[2] == AGAIN
local expires = redis.call('ZSCORE', set, member)
if again and not expires then
  member = REVOKED .. member
  expires = redis.call('ZSCORE', set, member)
end
if not expires or expires - NOW <= 0 then
  return GONE
end
if not begins(member, REVOKED) then
  redis.call('ZREM', set, member)
  redis.call('ZADD', set, expires, REVOKED .. member)
end
return expires - NOW
