"""The Lua scripts that change a run in Redis, and calls of them for many items at once."""

from attrs import frozen


@frozen
class LuaCall:
    """One item's part of a script call for many items: keys that all items share, its own key, arguments."""

    source: str
    shared: tuple[str, ...]
    own: str
    values: tuple[object, ...]


_FOR_EACH = """
local counted, kept = {}, {}
local function count(name, more) counted[name] = (counted[name] or 0) + more end
local function keep(key, seconds) kept[key] = seconds end
local function is_claimed(mark) return string.sub(mark, 1, 2) == 'i:' end
local function for_each(shared, size, step)
  local answers = {}
  for i = 1, #KEYS - shared do
    local own = {}
    for j = 1, size do own[j] = ARGV[(i - 1) * size + j] end
    answers[i] = step(KEYS[shared + i], own)
  end
  for name, more in pairs(counted) do redis.call('HINCRBY', KEYS[1], name, more) end
  for key, seconds in pairs(kept) do redis.call('EXPIRE', key, seconds) end
  return answers
end
"""
"""Scripts for many items take the shared keys, then one key per item, and the same number of arguments for each item.
They return one word per item: ``ok``, ``taken`` (the mark is not the expected one), ``ended`` or ``gone``."""

CLAIM_ITEM = (
    _FOR_EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return for_each(1, 0, function() return 'gone' end) end
local ended = redis.call('HEXISTS', KEYS[1], 'ended') == 1
return for_each(1, 4, function(marks, own)
  local mark = redis.call('HGET', marks, own[1]) or ''
  if mark == own[3] then return 'ok' end
  if ended then return 'ended' end
  if mark ~= own[2] then return 'taken' end
  redis.call('HSET', marks, own[1], own[3])
  if not is_claimed(mark) then count('c:in_doubt', 1) end
  keep(marks, own[4])
  return 'ok'
end)
"""
)
"""Keys: run, marks. Arguments: index, expected mark, new mark, retention."""

COMPLETE_ITEM = (
    _FOR_EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return for_each(2, 0, function() return 'gone' end) end
return for_each(2, 8, function(marks, own)
  local mark = redis.call('HGET', marks, own[1]) or ''
  if mark == own[3] then return 'ok' end
  if mark ~= own[2] then return 'taken' end
  redis.call('HSET', marks, own[1], own[3])
  redis.call('XADD', KEYS[2], '*', 'o', own[4])
  if is_claimed(mark) then count('c:in_doubt', -1) end
  count('c:' .. own[5], 1)
  count('attempts', tonumber(own[6]))
  if own[7] ~= '' then count('e:' .. own[7], 1) end
  keep(marks, own[8])
  keep(KEYS[2], own[8])
  return 'ok'
end)
"""
)
"""Keys: run, outcomes, marks. Arguments: index, expected mark, new mark, outcome, status, attempts, error label,
retention."""

RELEASE_ITEM = (
    _FOR_EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return for_each(1, 0, function() return 'gone' end) end
return for_each(1, 3, function(marks, own)
  local mark = redis.call('HGET', marks, own[1]) or ''
  if mark ~= own[2] then return 'taken' end
  if own[3] == '' then redis.call('HDEL', marks, own[1]) else redis.call('HSET', marks, own[1], own[3]) end
  count('c:in_doubt', -1)
  return 'ok'
end)
"""
)
"""Keys: run, marks. Arguments: index, expected mark, mark to leave (empty: none)."""

MARK_STOPPED = (
    _FOR_EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return for_each(1, 0, function() return 'gone' end) end
return for_each(1, 2, function(stopped, own)
  if redis.call('HSET', stopped, own[1], '1') == 1 then count('stopped', 1) end
  keep(stopped, own[2])
  return 'ok'
end)
"""
)
"""Keys: run, stopped items. Arguments: index, retention."""

CANCEL_RUN = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then return 'taken' end
redis.call('HSET', KEYS[1], 'ended', ARGV[1])
redis.call('HSET', KEYS[1], 'reason', ARGV[2])
return 'ok'
"""
"""Keys: run. Arguments: how it ended, and the reason."""

CREATE_RUN = """
local digest = redis.call('HGET', KEYS[1], 'digest')
if digest then
  if digest == ARGV[2] then return 'known' end
  return 'other'
end
redis.call('DEL', KEYS[1])
for i = 6, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'digest', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[5])
return 'ok'
"""
"""Keys: run, runs. Arguments: retention, digest of the requests, expiry time, run, current time, fields and values."""

SET_ONCE = """
if redis.call('HEXISTS', KEYS[1], 'digest') == 0 then return 'gone' end
if ARGV[3] and redis.call('HEXISTS', KEYS[1], ARGV[3]) == 1 then return 'refused' end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return redis.call('HGET', KEYS[1], ARGV[1])
"""
"""Keys: run. Arguments: field, value, and a field that must not be set. Returns the value that the field has then."""

UNSET = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 'ok'
"""
"""Keys: run. Arguments: field, the value that it must have."""

ACQUIRE_LEASE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""
"""Keys: lease. Arguments: owner, milliseconds."""

RENEW_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""
"""Keys: lease. Arguments: owner, milliseconds."""

RELEASE_LEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'ok'
"""
"""Keys: lease. Arguments: owner."""
