-- Renews a permit. KEYS: permits. ARGV: member, ttl in ms. Returns 1 if it was renewed, 0 if it was
-- not held.
local permits, member, ttl, time = KEYS[1], ARGV[1], ARGV[2] + 0, redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', permits, '-inf', now)
-- XX INCR 0 tests whether the member exists.
if not redis.call('ZADD', permits, 'XX', 'INCR', 0, member) then
  return 0
end
redis.call('ZADD', permits, now + ttl, member)
redis.call('PEXPIRE', permits, math.max(ttl + 1000, redis.call('PTTL', permits)))
return 1
