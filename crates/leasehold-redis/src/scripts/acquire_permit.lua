-- Takes one of several permits.
-- KEYS: permits. ARGV: member (`<of>|<value>`), ttl in ms, queue of waiters, flags (as in acquire.lua), of.
-- Granted: 1. Refused: {why, ms until trying again makes sense}, or {3, the other count} if holders have another count.
local permits, member, ttl, queue, flags, of = KEYS[1], ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[4], ARGV[5] + 0
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if string.find(flags, 'c', 1, true) then
  redis.call('ZREMRANGEBYSCORE', queue, '-inf', now)
  for _, waiter in ipairs(redis.call('ZRANGE', queue, 0, 1)) do
    if waiter ~= member then
      redis.call('PTTL', permits)
      return {1, 0}
    end
  end
end

redis.call('ZREMRANGEBYSCORE', permits, '-inf', now)
-- GETEX of a sorted set is an error, of nothing it is false; unlike ZCARD it counts as a write, so it arms no push.
if redis.pcall('GETEX', permits) then
  local first = redis.call('ZRANGE', permits, 0, 0, 'WITHSCORES')
  local count = string.match(string.gsub(first[1], '^broken:', ''), '^(%d+)|')
  if count + 0 ~= of then
    return {3, count + 0}
  end
  if redis.call('ZCARD', permits) >= of then
    local left = math.max(first[2] - now, 1)
    if string.find(flags, 'w', 1, true) then
      redis.call('ZADD', queue, now + left + math.min(3000, ttl), member)
      redis.call('PEXPIRE', queue, left + 60000 + math.min(3000, ttl))
    end
    return {0, left}
  end
end
redis.call('ZADD', permits, now + ttl, member)
redis.call('PEXPIRE', permits, math.max(ttl, redis.call('PTTL', permits)) + 1000)
if string.find(flags, 'r', 1, true) then
  redis.call('ZREM', queue, member)
end
return 1
