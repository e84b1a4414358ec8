-- Reads the holders and the waiters. KEYS: lock, readers, writers, waiters, permits, queue. Returns
-- {now in ms, value or false, PTTL, readers, writers, waiters, permits, queue}, where each of the
-- last five is a list of member, expiry in ms, member, ...
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then
  value = '(a ' .. redis.call('TYPE', KEYS[1]).ok .. ' of another program)'
end
local answer = {now, value, redis.call('PTTL', KEYS[1])}
for i = 2, 6 do
  answer[#answer + 1] = redis.call('ZRANGEBYSCORE', KEYS[i], '(' .. string.format('%.0f', now), '+inf', 'WITHSCORES')
end
return answer
