-- Acquires one of several permits.
--
-- KEYS: permits, waiters
-- ARGV: member `<of>|<value>`, ttl in ms, of, options (shared/acquisition.lua)
-- Returns 1; a refusal (shared/acquisition.lua); or {OTHER_COUNT, their count} if the holders have
-- permits of another number. Here a refusal has the permit that expires last as `holder`, and the
-- sum of the times at which the permits expire as `ends`. The sum grows whenever a permit is
-- granted or renewed.
local OTHER_COUNT = 3
-- The number of permits that a refusal adds up.
local ADDED_UP = 64
-- The number of waiters that a yielding request looks at.
local LOOKED_AT = 8

local permits, waiters = KEYS[1], KEYS[2]
local member, ttl, of, option = ARGV[1], ARGV[2] + 0, ARGV[3] + 0, options(4)

local function refuse(reason, left)
  if option.wait then
    register(waiters, member)
  end
  local held, sum = redis.call('ZRANGE', permits, -ADDED_UP, -1, 'WITHSCORES'), 0
  for i = 2, #held, 2 do
    sum = sum + held[i]
  end
  return {reason, left, held[#held - 1] or '', sum}
end

expire_members(permits)
-- GETEX of a sorted set is an error, of nothing it is false; unlike ZCARD it counts as a write, so
-- it arms no push.
if redis.pcall('GETEX', permits) then
  local first = redis.call('ZRANGE', permits, 0, 0, 'WITHSCORES')
  local count = string.match(string.gsub(first[1], '^' .. REVOKED, ''), '^(%d+)|')
  if count + 0 ~= of then
    return {OTHER_COUNT, count + 0}
  end
  if redis.call('ZCARD', permits) >= of then
    return refuse(HELD, math.max(first[2] - NOW, 1))
  end
end

-- A yielding request offers the free permit to those who wait.
if option.yield and redis.pcall('GETEX', waiters) then
  expire_members(waiters)
  local left, ahead = 0, redis.call('ZRANGE', waiters, 0, LOOKED_AT - 1, 'WITHSCORES')
  for i = 1, #ahead, 2 do
    local waiter, ends = ahead[i], ahead[i + 1] + 0
    if waiter ~= member then
      left = math.max(left, math.min(ends - NOW, OFFER))
      if is_idle(ends) then
        offer_to(waiters, waiter)
      end
    end
  end
  if left > 0 then
    -- Arms the notification.
    redis.call('PTTL', permits)
    return refuse(OFFERED, left)
  end
end

hold(permits, member, ttl)
if option.registered then
  redis.call('ZREM', waiters, member)
end
return 1
