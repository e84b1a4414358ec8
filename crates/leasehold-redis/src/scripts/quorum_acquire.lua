-- Takes the lock exclusively, as a node of a quorum.
-- KEYS: lock. ARGV: value, ttl in ms, waiter's value, flags (as in acquire.lua), what the lock's other keys begin with, what
-- the node's own keys begin with, the mark that the node must carry, the token that it must exceed, token floor.
-- Granted: the token, as a string. Refused: {why, ms until trying again makes sense}. Our own lock is granted again.
--
-- F = (token, owner) is the key `fence`: it never expires. As in acquire.lua nothing but a refusal runs a read-only command.
local lock, value, ttl, waiter, flags, base, node = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if (redis.call('GETEX', node .. 'mark') or '') ~= ARGV[7] then
  return redis.error_reply('LEASEMARK this node was marked anew')
end

if string.find(flags, 'c', 1, true) then
  for _, set in ipairs({base .. 'writers', base .. 'waiters'}) do
    if redis.pcall('GETEX', set) then
      local time = redis.call('TIME')
      redis.call('ZREMRANGEBYSCORE', set, '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
      for _, member in ipairs(redis.call('ZRANGE', set, 0, 1)) do
        if member ~= waiter then
          return {1, redis.call('PTTL', lock)}
        end
      end
    end
  end
end

-- Who began to wait earlier goes first, as long as its registration lives.
local earlier = false
if string.find(flags, 'o', 1, true) and redis.pcall('GETEX', base .. 'order') then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  for _, member in ipairs(redis.call('ZRANGE', base .. 'order', 0, 7)) do
    if member == waiter then
      break
    end
    if (redis.call('ZSCORE', base .. 'writers', member) or 0) + 0 > now then
      earlier = true
      break
    end
    redis.call('ZREM', base .. 'order', member)
  end
end

if earlier or not redis.call('SET', lock, value, 'NX', 'PX', ttl) then
  if redis.pcall('GETEX', lock) == value then
    redis.call('PEXPIRE', lock, ttl)
  else
    local left = redis.call('PTTL', lock)
    if string.find(flags, 'w', 1, true) then
      local writers, order, time = base .. 'writers', base .. 'order', redis.call('TIME')
      local lives = math.max(left, 0) + math.min(3000, ttl + 0)
      redis.call('ZADD', writers, time[1] * 1000 + math.floor(time[2] / 1000) + lives, waiter)
      redis.call('PEXPIRE', writers, lives + 60000)
      redis.call('ZADD', order, 'NX', time[1] * 1000000 + time[2], waiter)
      if redis.call('PTTL', order) < lives then
        redis.call('PEXPIRE', order, lives)
      end
    end
    return {earlier and left == -2 and 1 or 0, left}
  end
end

-- No client's clock may push it further than an hour beyond ours.
local fence, top = base .. 'fence', node .. 'top'
local stored, highest, time = redis.pcall('GETEX', fence), redis.call('GETEX', top), redis.call('TIME')
local last = 0
if stored then
  last = type(stored) == 'string' and tonumber(string.match(stored, '^(%d+):')) or 2^53
end
local least = math.max(last, ARGV[8] + 0, math.min(ARGV[9] + 0, (time[1] + 3600) * 1000000)) + 1
if least >= 2^53 then
  redis.call('DEL', lock)
  return redis.error_reply('LEASETOKEN no token below 2^53 is left')
end
local token = string.format('%.0f', least)
redis.call('SET', fence, token .. ':' .. string.sub(value, 1, 32))
-- Ten seconds ahead, so that it is written seldom.
if not highest or least > tonumber(highest) then
  redis.call('SET', top, string.format('%.0f', math.min(least + 10000000, 2^53)))
end
if string.find(flags, 'r', 1, true) then
  redis.call('ZREM', base .. 'writers', waiter)
  if string.find(flags, 'o', 1, true) then
    redis.call('ZREM', base .. 'order', waiter)
  else
    -- Those before it did not take it in time.
    local place = redis.call('ZRANK', base .. 'order', waiter)
    if place then
      redis.call('ZREMRANGEBYRANK', base .. 'order', 0, place)
    end
  end
end
return token
