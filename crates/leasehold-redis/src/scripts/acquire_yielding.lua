-- Acquires the lock exclusively if it is free and there are no waiters: a short form of acquire.lua
-- with the flag `c`. KEYS: lock. ARGV: value, ttl in ms, token key, order of waiters. Returns the
-- token as a number, OK if the counter cannot be read, or nil if refused. GETEX without options is
-- a GET that counts as a write, so it arms no push; of a sorted set it is an error.
if redis.pcall('GETEX', ARGV[4]) then
  return false
end
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return false
end
local token = redis.pcall('INCRBY', ARGV[3], 2)
if type(token) == 'table' then
  return redis.status_reply('OK')
end
return token
