-- Releases a shared lock. KEYS: lock. ARGV: value, readers. Returns 1 if it was released, 0 if it
-- was not held.
local lock, readers, time = KEYS[1], ARGV[2], redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holder = redis.pcall('GETEX', lock)
redis.call('ZREMRANGEBYSCORE', readers, '-inf', now)
if redis.call('ZREM', readers, ARGV[1]) == 0 then
  return 0
end
if not holder or type(holder) == 'table' or string.sub(holder, 1, 7) ~= 'shared:' then
  return 0
end
-- The key expires with the last reader, except for rounding. If the expiry does not change, no
-- waiter is notified.
local last = redis.call('ZREVRANGE', readers, 0, 0, 'WITHSCORES')[2]
if last then
  if redis.call('PTTL', lock) > last - now + 5 then
    redis.call('PEXPIRE', lock, string.format('%.0f', last - now))
  end
else
  redis.call('DEL', lock)
end
return 1
