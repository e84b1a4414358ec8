-- Gives back several exclusive locks: what release.lua does, for each. KEYS: locks. ARGV: the value
-- of each; then the order of the first ones, which ask whether anybody waits. The number of keys if
-- all were freed, and nobody waits for those that ask. Else for each 2, 1, 0, or an error.
local call, other = redis.pcall, nil
local asking = #ARGV - #KEYS
for i, lock in ipairs(KEYS) do
  local seen, answer, expected = call('GETEX', lock), 0, 1
  if seen == ARGV[i] then
    answer = call('DEL', lock)
  elseif type(seen) == 'table' and not string.find(seen.err, 'WRONGTYPE', 1, true) then
    answer = seen
  end
  if i <= asking then
    expected = 2
    if answer == 1 and not call('GETEX', ARGV[#KEYS + i]) then
      answer = 2
    end
  end
  if answer ~= expected then
    other = other or {}
    other[i] = answer
  end
end
if not other then
  return #KEYS
end
for i = 1, #KEYS do
  other[i] = other[i] or (i <= asking and 2 or 1)
end
return other
