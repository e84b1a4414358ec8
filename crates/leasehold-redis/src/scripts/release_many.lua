-- Releases several exclusive locks, each as release.lua does. KEYS: locks. ARGV: the value of each.
-- Returns the number of keys if all were released, and otherwise 1, 0 or an error for each.
local call, answers, all_freed = redis.pcall, {}, true
for i, lock in ipairs(KEYS) do
  local seen = call('GETEX', lock)
  if seen == ARGV[i] then
    answers[i] = call('DEL', lock)
  elseif type(seen) == 'table' and not string.find(seen.err, 'WRONGTYPE', 1, true) then
    answers[i] = seen
  else
    answers[i] = 0
  end
  all_freed = all_freed and answers[i] == 1
end
return all_freed and #KEYS or answers
