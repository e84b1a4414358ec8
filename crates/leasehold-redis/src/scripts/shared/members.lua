-- Sorted sets of holders or waiters. The score of a member is the time in ms at which it expires.

-- Removes the members that have expired.
local function expire_members(set)
  redis.call('ZREMRANGEBYSCORE', set, '-inf', NOW)
end

-- Returns whether the set has this member. The command counts as a write, so that it arms no
-- notification.
local function has_member(set, member)
  return redis.call('ZADD', set, 'XX', 'INCR', 0, member) and true
end

-- Adds or renews a holder. The set outlives its last member by a second.
local function hold(set, member, ttl)
  redis.call('ZADD', set, NOW + ttl, member)
  redis.call('PEXPIRE', set, math.max(ttl + 1000, redis.call('PTTL', set)))
end

