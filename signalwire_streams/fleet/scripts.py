"""What must be one step in Redis, as Lua: a start has one owner at a time, and one outcome.

A start's mark is a field of its batch's hash: nothing (not sent), ``i:OWNER`` (that owner may have sent it), or
``f:STATE:AMBIGUOUS:SID`` (settled). Each step says what mark it believes to be there, and does nothing where
another is, so that whoever was replaced can do no harm, and a step that is sent twice is done once.
"""

_EACH = """
local counted, kept = {}, {}
local function count(name, more) counted[name] = (counted[name] or 0) + more end
local function keep(key, seconds) kept[key] = seconds end
local function each(shared, size, step)
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
"""What is done for many starts at once names the keys that they share first, the run's the very first, then one key
for each start, and has the same number of arguments for each; it answers with a word for each."""

INTEND = (
    _EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return each(1, 0, function() return 'gone' end) end
local ended = redis.call('HEXISTS', KEYS[1], 'ended') == 1
return each(1, 4, function(marks, own)
  local mark = redis.call('HGET', marks, own[1]) or ''
  if mark == own[3] then return 'ok' end
  if ended then return 'ended' end
  if mark ~= own[2] then return 'taken' end
  redis.call('HSET', marks, own[1], own[3])
  if mark == '' then count('c:intended', 1) end
  keep(marks, own[4])
  return 'ok'
end)
"""
)
"""Keys: run, marks of each. Arguments of each: index, the mark that is believed, the new one, seconds to keep it."""

SETTLE = (
    _EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return each(2, 0, function() return 'gone' end) end
return each(2, 8, function(marks, own)
  local mark = redis.call('HGET', marks, own[1]) or ''
  if mark == own[3] then return 'ok' end
  if mark ~= own[2] then return 'taken' end
  redis.call('HSET', marks, own[1], own[3])
  redis.call('XADD', KEYS[2], '*', 'o', own[4])
  if mark ~= '' then count('c:intended', -1) end
  count('c:' .. own[5], 1)
  count('attempts', tonumber(own[6]))
  if own[7] ~= '' then count('e:' .. own[7], 1) end
  keep(marks, own[8])
  keep(KEYS[2], own[8])
  return 'ok'
end)
"""
)
"""Keys: run, outcomes, marks of each. Arguments of each: index, the mark that is believed, the new one, the outcome,
its state, how many attempts it took, its error's label, seconds to keep it."""

RELEASE = (
    _EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return each(1, 0, function() return 'gone' end) end
return each(1, 2, function(marks, own)
  local mark = redis.call('HGET', marks, own[1]) or ''
  if mark ~= own[2] then return 'taken' end
  redis.call('HDEL', marks, own[1])
  count('c:intended', -1)
  return 'ok'
end)
"""
)
"""Keys: run, marks of each. Arguments of each: index, the mark that is believed."""

UNDO = (
    _EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return each(1, 0, function() return 'gone' end) end
return each(1, 2, function(undone, own)
  if redis.call('HSET', undone, own[1], '1') == 1 then count('undone', 1) end
  keep(undone, own[2])
  return 'ok'
end)
"""
)
"""Keys: run, what was stopped again for each. Arguments of each: index, seconds to keep it."""

END = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then return 'taken' end
redis.call('HSET', KEYS[1], 'ended', ARGV[1])
redis.call('HSET', KEYS[1], 'why', ARGV[2])
return 'ok'
"""
"""Keys: run. Arguments: how it ended, and why in words."""

PLAN = """
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
"""Keys: run, runs. Arguments: seconds to keep it, the plan's digest, when it is forgotten, in seconds, what the run is
called, now, the run's facts by name."""

NOTE = """
if redis.call('HEXISTS', KEYS[1], 'digest') == 0 then return 'gone' end
if ARGV[3] and redis.call('HEXISTS', KEYS[1], ARGV[3]) == 1 then return 'refused' end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return redis.call('HGET', KEYS[1], ARGV[1])
"""
"""Keys: run. Arguments: a fact's name, its value where it has none yet, a fact that must not be known. It answers with
the value that the fact has then."""

TAKE_BACK = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 'ok'
"""
"""Keys: run. Arguments: a fact's name, the value that it had."""

HOLD = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""
"""Keys: a batch's lease. Arguments: owner, milliseconds."""

RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""
"""Keys: a batch's lease. Arguments: owner, milliseconds."""

LET_GO = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'ok'
"""
"""Keys: a batch's lease. Arguments: owner."""
