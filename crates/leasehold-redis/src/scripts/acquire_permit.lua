-- Acquires one of several permits. KEYS: permits. ARGV: member (`<of>|<value>`), ttl in ms, queue
-- of waiters, flags (as in acquire.lua), of. Returns 1, a refusal (see `refusal`), or {3, the other
-- count} if the holders have another count.
local permits, member, ttl, queue, flags, of = KEYS[1], ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[4], ARGV[5] + 0
local now = millis(redis.call('TIME'))

-- A refusal contains the permit that expires last and the sum of the expiry times. The sum grows
-- whenever a permit is granted or renewed.
local function refuse(why, left)
  if string.find(flags, 'w', 1, true) then
    register_in(queue, member, now)
  end
  local held, sum = redis.call('ZRANGE', permits, -64, -1, 'WITHSCORES'), 0
  for i = 2, #held, 2 do
    sum = sum + held[i]
  end
  return {why, left, held[#held - 1] or '', sum}
end

redis.call('ZREMRANGEBYSCORE', permits, '-inf', now)
-- GETEX of a sorted set is an error, of nothing it is false; unlike ZCARD it counts as a write, so
-- it arms no push.
if redis.pcall('GETEX', permits) then
  local first = redis.call('ZRANGE', permits, 0, 0, 'WITHSCORES')
  local count = string.match(string.gsub(first[1], '^broken:', ''), '^(%d+)|')
  if count + 0 ~= of then
    return {3, count + 0}
  end
  if redis.call('ZCARD', permits) >= of then
    return refuse(0, math.max(first[2] - now, 1))
  end
end

-- A yielding request offers the free permit to those who wait.
if string.find(flags, 'c', 1, true) and redis.pcall('GETEX', queue) then
  redis.call('ZREMRANGEBYSCORE', queue, '-inf', now)
  local most, waiters = 0, redis.call('ZRANGE', queue, 0, 7, 'WITHSCORES')
  for i = 1, #waiters, 2 do
    local ends = waiters[i + 1] + 0
    if waiters[i] ~= member then
      most = math.max(most, math.min(ends - now, OFFER))
      if is_idle(ends, now) then
        redis.call('ZADD', queue, now + OFFER, waiters[i])
      end
    end
  end
  if most > 0 then
    redis.call('PTTL', permits)
    return refuse(1, most)
  end
end

redis.call('ZADD', permits, now + ttl, member)
redis.call('PEXPIRE', permits, math.max(ttl + 1000, redis.call('PTTL', permits)))
if string.find(flags, 'r', 1, true) then
  redis.call('ZREM', queue, member)
end
return 1
