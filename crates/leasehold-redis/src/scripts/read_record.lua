-- Reads the record of a lock, and tells whether its writer still holds the lock.
--
-- KEYS: record; also the lock, if it matters whether the writer holds it
-- ARGV: `watch` or nothing
-- Returns {now in us, the record or false, 1 if the writer holds the lock or it does not matter and
-- otherwise 0, with `watch` the PTTL of the lock that matters and otherwise NO_LOCK}.
--
-- GETEX counts as a write, so a server that is no primary any more refuses it: it does not answer
-- with an old record. With `watch`, PTTL arms the notification (CLIENT TRACKING) of all keys.
local record_key, lock, watch = KEYS[1], KEYS[2], ARGV[1] == 'watch'
-- Stands for the PTTL of a lock that does not matter, and is that of a missing one.
local NO_LOCK = -2
-- A longer value is not a record, and only its beginning is returned, so that the answer stays
-- short.
local MAX_LEN, BEGINNING = 32768, 40

local stored, failure = value_of(record_key)
if failure then
  return failure
elseif stored == NO_STRING then
  stored = ''
elseif stored and #stored > MAX_LEN then
  stored = string.sub(stored, 1, BEGINNING)
end
if watch then
  redis.call('PTTL', record_key)
end
if not lock then
  return {NOW_MICROS, stored, 1, NO_LOCK}
end

local holder, unreadable = value_of(lock)
if unreadable then
  return unreadable
end
local left = watch and redis.call('PTTL', lock) or NO_LOCK
local owner = string.match(stored or '', '^leasehold%-record1 %d+ %d+ (%x+) ')
local held = owner and (begins(holder, owner .. ':') or begins(holder, REVOKED .. owner .. ':'))
return {NOW_MICROS, stored, held and 1 or 0, left}
