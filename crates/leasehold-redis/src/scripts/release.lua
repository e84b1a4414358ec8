-- Releases exclusive locks that still have these values, even if they were revoked.
--
-- KEYS: the locks
-- ARGV: the value of each
-- Returns for each lock 1 if it was released, 0 if it had another value, or an error; separated by
-- spaces, or as a list if there is an error. The answer for a single lock is in no list.
local answers, failed, released = {}, false, {}
for i, lock in ipairs(KEYS) do
  local value = ARGV[i]
  local holder, failure = value_of(lock)
  if failure then
    answers[i], failed = failure, true
  elseif holder == value or holder == REVOKED .. value then
    answers[i] = 1
    released[#released + 1] = lock
  else
    answers[i] = 0
  end
end
if #released > 0 then
  redis.call('DEL', unpack(released))
end
if #KEYS == 1 then
  return answers[1]
end
return failed and answers or table.concat(answers, ' ')
