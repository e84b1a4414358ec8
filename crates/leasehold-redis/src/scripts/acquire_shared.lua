-- Takes the lock shared.
-- KEYS: lock, writers. ARGV: value, ttl in ms, token key, flags (as in acquire.lua), token floor.
-- Granted: the token, as a string. Refused: {why, ms until trying again makes sense}.
--
-- While readers hold, the lock key is a string that lasts as long as the last of them, so that programs which know
-- nothing of readers see it as taken. GETEX without options is a GET that counts as a write, so it arms no push.
local lock, writers, value, ttl, token_key, flags = KEYS[1], KEYS[2], ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[4] or ''
local base, time = string.sub(writers, 1, -8), redis.call('TIME')
local readers, waiters = base .. 'readers', base .. 'waiters'
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function refuse(why)
  local left = redis.call('PTTL', lock)
  if why == 2 then
    left = redis.call('ZREVRANGE', writers, 0, 0, 'WITHSCORES')[2] - now
  end
  if why ~= 1 and string.find(flags, 'w', 1, true) then
    local lives = math.max(left, 0) + 3000
    redis.call('ZADD', waiters, now + lives, value)
    redis.call('PEXPIRE', waiters, lives + 60000)
  end
  return {why, left}
end

-- A waiting writer goes first. (GETEX of a sorted set is an error, of nothing it is false.)
redis.call('ZREMRANGEBYSCORE', writers, '-inf', now)
if redis.pcall('GETEX', writers) then
  return refuse(2)
end
local holder = redis.pcall('GETEX', lock)
if holder and (type(holder) == 'table' or string.sub(holder, 1, 7) ~= 'shared:') then
  return refuse(0)
end
if string.find(flags, 'c', 1, true) then
  redis.call('ZREMRANGEBYSCORE', waiters, '-inf', now)
  for _, member in ipairs(redis.call('ZRANGE', waiters, 0, 1)) do
    if member ~= value then
      return refuse(1)
    end
  end
end

-- The token: one above the last exclusive one. INCRBY 0 is a GET that counts as a write.
local expiry = 86400
if ttl > 43200000 then
  expiry = math.ceil(ttl / 500)
end
local last = redis.pcall('INCRBY', token_key, 0)
if type(last) == 'table' then
  return last
end
local least = last
if last == 0 then
  least = time[1] * 1000000 + time[2]
end
if ARGV[5] then
  least = math.max(least, ARGV[5] + 0)
end
if least + 2 >= 2^53 then
  return redis.error_reply('LEASETOKEN no token below 2^53 is left')
end
if least == last then
  redis.call('EXPIRE', token_key, expiry)
else
  redis.call('SET', token_key, string.format('%.0f', least), 'EX', expiry)
end

if not holder then
  -- Whoever is still listed held it before the key vanished, and lost it then.
  redis.call('DEL', readers)
  redis.call('SET', lock, 'shared:' .. string.sub(value, 1, 32), 'PX', ttl)
else
  redis.call('ZREMRANGEBYSCORE', readers, '-inf', now)
  if redis.call('PTTL', lock) < ttl then
    redis.call('PEXPIRE', lock, ttl)
  end
end
redis.call('ZADD', readers, now + ttl, value)
redis.call('PEXPIRE', readers, math.max(ttl, redis.call('PTTL', readers)) + 1000)
if string.find(flags, 'r', 1, true) then
  redis.call('ZREM', waiters, value)
end
return string.format('%.0f', least + 1)
