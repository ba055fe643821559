package expr

import (
	"fmt"
	"iter"
	"math"
	"strconv"
	"strings"
	"unicode"
)

// Kind is the type of a [Value].
type Kind uint8

// The kinds. Null is the zero value.
const (
	KindNull Kind = iota
	KindBool
	KindNumber
	KindString
	KindArray
	KindObject
)

// String is GitHub's name of the kind: Null, Boolean, Number, String, Array, Object.
func (k Kind) String() string {
	switch k {
	case KindNull:
		return "Null"
	case KindBool:
		return "Boolean"
	case KindNumber:
		return "Number"
	case KindString:
		return "String"
	case KindArray:
		return "Array"
	case KindObject:
		return "Object"
	}
	return "Kind(" + strconv.Itoa(int(k)) + ")"
}

// Value is one value of the expression language. The zero Value is null. Values
// are immutable: the slice or map behind one must not be changed after it was
// handed over.
type Value struct {
	kind Kind
	num  float64 // also booleans: 0 and 1
	str  string
	arr  *array
	obj  *Map
}

// array is behind a pointer because arrays are equal only to themselves.
type array struct {
	items    []Value
	filtered bool // the result of .* or [*]: a further index goes to the members
}

// Null is the value null.
func Null() Value { return Value{} }

// Bool is a boolean value.
func Bool(b bool) Value {
	if b {
		return Value{kind: KindBool, num: 1}
	}
	return Value{kind: KindBool}
}

// Number is a number value.
func Number(f float64) Value { return Value{kind: KindNumber, num: f} }

// String is a string value.
func String(s string) Value { return Value{kind: KindString, str: s} }

// Array is an array value with an identity of its own: two calls make two arrays
// that are not equal, whatever they hold. It keeps items, which must not change.
func Array(items []Value) Value { return Value{kind: KindArray, arr: &array{items: items}} }

// Object is the object value of m, which it keeps. A nil map is an empty object.
func Object(m *Map) Value {
	if m == nil {
		m = NewMap()
	}
	return Value{kind: KindObject, obj: m}
}

func filteredArray(items []Value) Value {
	return Value{kind: KindArray, arr: &array{items: items, filtered: true}}
}

// Kind tells which kind of value v is.
func (v Value) Kind() Kind { return v.kind }

// IsNull reports whether v is null.
func (v Value) IsNull() bool { return v.kind == KindNull }

// AsBool is the boolean in v, false if v is no boolean. It does not coerce: see [Value.Truthy].
func (v Value) AsBool() bool { return v.kind == KindBool && v.num != 0 }

// AsNumber is the number in v, 0 if v is no number. It does not coerce: see [Value.ToNumber].
func (v Value) AsNumber() float64 {
	if v.kind != KindNumber {
		return 0
	}
	return v.num
}

// AsString is the text in v, empty if v is no string. It does not coerce: see [Value.ToString].
func (v Value) AsString() string { return v.str }

// AsArray is the members of an array, nil for anything else. Not to be changed.
func (v Value) AsArray() []Value {
	if v.arr == nil {
		return nil
	}
	return v.arr.items
}

// AsMap is the map of an object, nil for anything else. A nil *Map reads as empty.
func (v Value) AsMap() *Map { return v.obj }

// Get is the member of an object under key, null if v is no object or has none.
func (v Value) Get(key string) Value {
	r, _ := v.obj.Get(key)
	return r
}

// At follows keys from v downwards. Null as soon as one is missing.
func (v Value) At(keys ...string) Value {
	for _, k := range keys {
		v = v.Get(k)
	}
	return v
}

// Primitive reports whether v is null, a boolean, a number or a string.
func (v Value) Primitive() bool { return v.kind < KindArray }

// Truthy reports whether v counts as true: everything but null, false, 0, NaN and ”.
func (v Value) Truthy() bool {
	switch v.kind {
	case KindNull:
		return false
	case KindBool:
		return v.num != 0
	case KindNumber:
		return v.num != 0 && !math.IsNaN(v.num)
	case KindString:
		return v.str != ""
	}
	return true
}

// ToNumber is v as a number by GitHub's coercion: null is 0, booleans are 0 and
// 1, text is read as JavaScript's Number does, arrays and objects are NaN.
func (v Value) ToNumber() float64 {
	switch v.kind {
	case KindNull:
		return 0
	case KindBool, KindNumber:
		return v.num
	case KindString:
		return parseNumber(v.str)
	}
	return math.NaN()
}

// ToString is v as text by GitHub's coercion: null is empty, arrays and objects
// are the words Array and Object.
func (v Value) ToString() string {
	switch v.kind {
	case KindNull:
		return ""
	case KindBool:
		if v.num != 0 {
			return "true"
		}
		return "false"
	case KindNumber:
		return formatNumber(v.num)
	case KindString:
		return v.str
	case KindArray:
		return "Array"
	}
	return "Object"
}

// GoString shows v in tests and debuggers as the JSON that toJSON makes of it.
func (v Value) GoString() string { return "expr.Value(" + v.JSON() + ")" }

// Equal is the == of the language.
func Equal(a, b Value) bool {
	a, b = coerce(a, b)
	if a.kind != b.kind {
		return false
	}
	switch a.kind {
	case KindNull:
		return true
	case KindBool, KindNumber:
		return a.num == b.num // NaN is not equal to anything
	case KindString:
		return equalFold(a.str, b.str)
	case KindArray:
		return a.arr == b.arr
	}
	return a.obj == b.obj
}

// order compares two values for < and >; comparable is false where neither holds.
func order(a, b Value) (cmp int, comparable bool) {
	a, b = coerce(a, b)
	if a.kind != b.kind {
		return 0, false
	}
	switch a.kind {
	case KindBool, KindNumber:
		switch {
		case a.num < b.num:
			return -1, true
		case a.num > b.num:
			return 1, true
		}
		return 0, a.num == b.num
	case KindString:
		return compareFold(a.str, b.str), true
	}
	return 0, false
}

// coerce brings two values of different kinds to numbers where the language
// does: text meeting a number, null or a boolean meeting anything.
func coerce(a, b Value) (Value, Value) {
	if a.kind == b.kind {
		return a, b
	}
	if a.kind == KindNull || a.kind == KindBool {
		a = Number(a.ToNumber())
	}
	if b.kind == KindNull || b.kind == KindBool {
		b = Number(b.ToNumber())
	}
	switch {
	case a.kind == KindNumber && b.kind == KindString:
		b = Number(b.ToNumber())
	case a.kind == KindString && b.kind == KindNumber:
		a = Number(a.ToNumber())
	}
	return a, b
}

// parseNumber reads text as a number: decimal with optional sign, point and
// exponent; 0x and 0o of 32 bits without sign; Infinity. Empty text is 0,
// everything else NaN. White space around it does not count.
func parseNumber(s string) float64 {
	s = strings.TrimFunc(s, unicode.IsSpace)
	if s == "" {
		return 0
	}
	if decimal(s) {
		f, _ := strconv.ParseFloat(s, 64) // out of range gives ±Inf, as in .NET
		return f
	}
	if len(s) > 2 && s[0] == '0' {
		base := 0
		switch s[1] {
		case 'x':
			base = 16
		case 'o':
			base = 8
		}
		if base != 0 && allDigits(s[2:], base) {
			u, err := strconv.ParseUint(s[2:], base, 32)
			if err != nil {
				return math.NaN()
			}
			// GitHub reads these as 32-bit integers with a sign.
			return float64(int32(uint32(u)))
		}
	}
	switch s {
	case "Infinity", "+Infinity":
		return math.Inf(1)
	case "-Infinity":
		return math.Inf(-1)
	}
	return math.NaN()
}

func allDigits(s string, base int) bool {
	for i := range len(s) {
		c := s[i]
		d := 99
		switch {
		case c >= '0' && c <= '9':
			d = int(c - '0')
		case c >= 'a' && c <= 'f':
			d = int(c-'a') + 10
		case c >= 'A' && c <= 'F':
			d = int(c-'A') + 10
		}
		if d >= base {
			return false
		}
	}
	return s != ""
}

// decimal reports whether s is [+-] digits [. digits] [e [+-] digits] with at
// least one digit before or after the point.
func decimal(s string) bool {
	i := 0
	if s[i] == '+' || s[i] == '-' {
		i++
	}
	digits := 0
	for ; i < len(s) && isDigit(s[i]); i++ {
		digits++
	}
	if i < len(s) && s[i] == '.' {
		for i++; i < len(s) && isDigit(s[i]); i++ {
			digits++
		}
	}
	if digits == 0 {
		return false
	}
	if i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		i++
		if i < len(s) && (s[i] == '+' || s[i] == '-') {
			i++
		}
		if i == len(s) {
			return false
		}
		for ; i < len(s) && isDigit(s[i]); i++ {
		}
	}
	return i == len(s)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// formatNumber writes a number with at most 15 significant digits, as .NET's G15
// does: plain from 1e-4 up to 15 digits before the point, else as 1.5E+20.
func formatNumber(f float64) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	case f == 0:
		return "0"
	}
	if f == math.Trunc(f) && math.Abs(f) < 1e15 {
		return strconv.FormatInt(int64(f), 10)
	}
	var buf [32]byte
	b := strconv.AppendFloat(buf[:0], f, 'e', 14, 64) // d.dddddddddddddde±dd
	e := strings.LastIndexByte(string(b), 'e')
	exp, _ := strconv.Atoi(string(b[e+1:]))
	mant := strings.TrimRight(strings.TrimRight(string(b[:e]), "0"), ".")
	if exp > -5 && exp < 15 {
		return trimZeros(strconv.FormatFloat(f, 'f', max(14-exp, 0), 64))
	}
	sign := "+"
	if exp < 0 {
		sign, exp = "-", -exp
	}
	return fmt.Sprintf("%sE%s%02d", mant, sign, exp)
}

func trimZeros(s string) string {
	if !strings.Contains(s, ".") {
		return s
	}
	return strings.TrimRight(strings.TrimRight(s, "0"), ".")
}

// Map is an object: keys in the order in which they were set, found without
// regard to case unless it was made by [NewCaseSensitiveMap]. A nil *Map can be
// read and is empty. Reading is safe for concurrent use, changing is not.
type Map struct {
	keys  []string
	vals  []Value
	index map[string]int // folded key → position; only for more than mapScan keys
	exact bool
}

// mapScan is the size up to which looking through the keys beats an index.
const mapScan = 8

// NewMap makes an empty map.
func NewMap() *Map { return &Map{} }

// NewCaseSensitiveMap makes a map in which FOO and foo are two keys.
func NewCaseSensitiveMap() *Map { return &Map{exact: true} }

func (m *Map) find(key string) int {
	if m == nil {
		return -1
	}
	if m.index != nil {
		if m.exact {
			if i, ok := m.index[key]; ok {
				return i
			}
			return -1
		}
		var buf [64]byte
		if b, ok := appendFoldASCII(buf[:0], key); ok {
			if i, ok := m.index[string(b)]; ok {
				return i
			}
			return -1
		}
		if i, ok := m.index[fold(key)]; ok {
			return i
		}
		return -1
	}
	if m.exact {
		for i, k := range m.keys {
			if k == key {
				return i
			}
		}
		return -1
	}
	for i, k := range m.keys {
		if k == key || equalFold(k, key) {
			return i
		}
	}
	return -1
}

// Set puts v under key. A key that is there already keeps its place and spelling.
func (m *Map) Set(key string, v Value) {
	if i := m.find(key); i >= 0 {
		m.vals[i] = v
		return
	}
	m.keys = append(m.keys, key)
	m.vals = append(m.vals, v)
	if m.index != nil {
		m.index[m.indexKey(key)] = len(m.keys) - 1
	} else if len(m.keys) > mapScan {
		m.reindex()
	}
}

func (m *Map) indexKey(key string) string {
	if m.exact {
		return key
	}
	return fold(key)
}

func (m *Map) reindex() {
	m.index = make(map[string]int, 2*len(m.keys))
	for i, k := range m.keys {
		m.index[m.indexKey(k)] = i
	}
}

// Get is the value under key and whether there is one.
func (m *Map) Get(key string) (Value, bool) {
	if i := m.find(key); i >= 0 {
		return m.vals[i], true
	}
	return Value{}, false
}

// Delete takes key out.
func (m *Map) Delete(key string) {
	i := m.find(key)
	if i < 0 {
		return
	}
	m.keys = append(m.keys[:i:i], m.keys[i+1:]...)
	m.vals = append(m.vals[:i:i], m.vals[i+1:]...)
	if m.index != nil {
		m.reindex()
	}
}

// Len is the number of keys.
func (m *Map) Len() int {
	if m == nil {
		return 0
	}
	return len(m.keys)
}

// Keys are the keys in order, in their original spelling.
func (m *Map) Keys() []string {
	if m == nil {
		return nil
	}
	return append([]string(nil), m.keys...)
}

// All goes over keys and values in order.
func (m *Map) All() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		if m == nil {
			return
		}
		for i, k := range m.keys {
			if !yield(k, m.vals[i]) {
				return
			}
		}
	}
}

// Clone is a copy that can be changed without m changing; the values are shared.
func (m *Map) Clone() *Map {
	if m == nil {
		return NewMap()
	}
	c := &Map{keys: append([]string(nil), m.keys...), vals: append([]Value(nil), m.vals...), exact: m.exact}
	if m.index != nil {
		c.reindex()
	}
	return c
}
