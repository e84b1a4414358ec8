-- Reads the holders and the waiters.
--
-- KEYS: lock, and five sorted sets: readers, waiting writers, waiting readers, permits, waiters for
-- a permit
-- Returns {now in ms, value of the lock or false, PTTL of the lock, and a list for each sorted set:
-- member, expiry in ms, member, ...}.
local lock = KEYS[1]
local value = redis.pcall('GET', lock)
if type(value) == 'table' then
  value = '(a ' .. redis.call('TYPE', lock).ok .. ' of another program)'
end
local answer = {NOW, value, redis.call('PTTL', lock)}
for i = 2, 6 do
  answer[i + 2] = redis.call('ZRANGEBYSCORE', KEYS[i], '(' .. digits(NOW), '+inf', 'WITHSCORES')
end
return answer
