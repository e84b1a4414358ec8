-- Renews a shared lock. KEYS: lock. ARGV: value, ttl in ms, readers. Returns 1 if it was renewed, 0
-- if it was not held.
local lock, value, ttl, readers, time = KEYS[1], ARGV[1], ARGV[2] + 0, ARGV[3], redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- This write comes first and is not protected: on a server that accepts no writes, such as a
-- replica, the script fails and the outcome is unknown.
redis.call('ZREMRANGEBYSCORE', readers, '-inf', now)
local holder = redis.pcall('GETEX', lock)
if not holder or type(holder) == 'table' or string.sub(holder, 1, 7) ~= 'shared:' then
  return 0
end
-- XX INCR 0 tests whether the member exists, and counts as a write.
if not redis.call('ZADD', readers, 'XX', 'INCR', 0, value) then
  return 0
end
redis.call('ZADD', readers, now + ttl, value)
if redis.call('PTTL', lock) < ttl then
  redis.call('PEXPIRE', lock, ttl)
end
redis.call('PEXPIRE', readers, math.max(ttl + 1000, redis.call('PTTL', readers)))
return 1
