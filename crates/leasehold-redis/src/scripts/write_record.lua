-- Replaces or clears the record of a lock, if the lock still has this value, even if it was revoked.
--
-- KEYS: lock, record
-- ARGV: value of the lock, sequence of the write, token or `-`, label, value of the record, and
-- `clear` or nothing
-- Returns the version of the record; 0 if the lock has another value; or the beginning of what is
-- stored at the place of the record, if that is not a record.
--
-- The encoding is that of `StoredRecord` in leasehold-core. The only other command that changes
-- anything is the last one, so a script that fails has written nothing.
local lock, record_key, value = KEYS[1], KEYS[2], ARGV[1]
local sequence, token, label, content = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local clear = ARGV[6] == 'clear'
local BEGINNING = 40

-- Returns whether a field is a number as Leasehold writes it, without leading zeros.
local function is_number(field)
  return field == '0' or string.match(field, '^[1-9]%d*$') ~= nil
end

-- Returns whether a field is a number, or `-`.
local function is_optional(field)
  return field == '-' or is_number(field)
end

local holder, failure = value_of(lock)
if failure then
  return failure
elseif holder ~= value and holder ~= REVOKED .. value then
  return 0
end

local stored, unreadable = value_of(record_key)
if unreadable then
  return unreadable
elseif stored == NO_STRING then
  return ''
end
local owner, version = string.sub(value, 1, 32), 0
if stored then
  local of, nth, writer, fence, time, label_len, len, body = string.match(
    stored, '^leasehold%-record1 (%d+) (%d+) ([0-9a-f]+) (%S+) (%d+) (%d+) (%S+)\n()')
  local valid = of and of + 0 < TOKEN_LIMIT and nth + 0 < TOKEN_LIMIT and #writer == 32
    and is_number(of) and is_number(nth) and is_number(time) and is_number(label_len)
    and is_optional(fence) and is_optional(len)
    and #stored == body - 1 + label_len + (len == '-' and 0 or len)
  if not valid then
    return string.sub(stored, 1, BEGINNING)
  end
  version = of + 0
  if writer == owner and nth + 0 >= sequence + 0 then
    return version
  end
end
redis.call('SET', record_key, string.format('leasehold-record1 %.0f %s %s %s %.0f %d %s\n', version + 1, sequence,
  owner, token, NOW_MICROS, #label, clear and '-' or #content) .. label .. content)
return version + 1
