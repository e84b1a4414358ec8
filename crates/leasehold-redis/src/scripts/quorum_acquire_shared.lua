-- Acquires the lock shared, on a node of a quorum. KEYS: lock, writers. ARGV: as in
-- quorum_acquire.lua. Returns the token, as a string, or a refusal: see `refusal`. A lock with the
-- same value is granted again.
--
-- As acquire_shared.lua, but each reader draws a token of its own. It is above the token of every
-- earlier writer at this node, and below that of every later writer.
local lock, writers, value, ttl, waiter, flags = KEYS[1], KEYS[2], ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[4]
local base, node, time = ARGV[5], ARGV[6], redis.call('TIME')
local readers, now = base .. 'readers', millis(time)
if (redis.call('GETEX', node .. 'mark') or '') ~= ARGV[7] or run_of_server() ~= ARGV[10] then
  return redis.error_reply('LEASEMARK this node was marked anew, or has restarted')
end

local function refuse(why, ends)
  local left, last = redis.call('PTTL', lock), redis.call('ZREVRANGE', writers, 0, 0, 'WITHSCORES')[2]
  -- A reader is woken by a change of the lock and of the list of writers.
  local seen = now + left + (last or 0)
  if why == 1 then
    left = offer(base, waiter, ends)
  elseif why == 2 then
    left = last - now
  end
  if string.find(flags, 'w', 1, true) then
    register(base, 'waiters', waiter)
  end
  return refusal(why, left, lock, seen)
end

local holder = redis.pcall('GETEX', lock)
if holder and (type(holder) == 'table' or string.sub(holder, 1, 7) ~= 'shared:') then
  return refuse(0)
end
local ends = writer_ahead(base, waiter)
if ends then
  return refuse(holder and 2 or 1, ends)
end

local fence, top = base .. 'fence', node .. 'top'
local stored, highest = redis.pcall('GETEX', fence), redis.call('GETEX', top)
local last = 0
if stored then
  last = type(stored) == 'string' and tonumber(string.match(stored, '^(%d+):')) or 2^53
end
local least = math.max(last, ARGV[8] + 0, math.min(ARGV[9] + 0, (time[1] + 3600) * 1000000)) + 1
if least >= 2^53 then
  return redis.error_reply('LEASETOKEN no token below 2^53 is left')
end
local token = string.format('%.0f', least)
redis.call('SET', fence, token .. ':' .. string.sub(value, 1, 32))
if not highest or least > tonumber(highest) then
  redis.call('SET', top, string.format('%.0f', math.min(least + 10000000, 2^53)))
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
redis.call('PEXPIRE', readers, math.max(ttl + 1000, redis.call('PTTL', readers)))
if string.find(flags, 'r', 1, true) then
  deregister(base, 'waiters', waiter)
end
return token
