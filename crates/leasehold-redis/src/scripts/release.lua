-- Releases an exclusive lock if it still has this value, even if it was revoked.
--
-- KEYS: lock
-- ARGV: value
-- Returns 1 if it was released, 0 if it had another value.
local lock, value = KEYS[1], ARGV[1]
local holder, failure = value_of(lock)
if failure then
  return failure
elseif holder == value or holder == REVOKED .. value then
  return redis.call('DEL', lock)
end
return 0
