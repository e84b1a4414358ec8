-- Acquires the lock exclusively if it is free and there are no waiters: a short form of acquire.lua
-- with the option `yield`, for a counter that is known to be above the clock.
--
-- KEYS: lock, token counter, order of waiters
-- ARGV: value, ttl in ms
-- Returns the token as a number, OK if the lock was acquired but the counter cannot be read, or nil
-- if refused.
--
-- GETEX without options is a GET that counts as a write, so it arms no push; of a sorted set it is
-- an error.
local lock, counter, order = KEYS[1], KEYS[2], KEYS[3]
local value, ttl = ARGV[1], ARGV[2]
if redis.pcall('GETEX', order) then
  return false
end
if not redis.call('SET', lock, value, 'NX', 'PX', ttl) then
  return false
end
local token = redis.pcall('INCRBY', counter, 2)
if type(token) == 'table' then
  return redis.status_reply('OK')
end
return token
