// Package intake owns how bodies of HTTP requests are taken in: bound in pace, in size, and in how much of them is held at once.
//
// Trust boundary: what sends is a stranger. Whoever sends slower than a least pace is cut; whoever sends more than a route takes is
// refused; when as much as may be is being held already, the next is asked to come back.
//
// Invariants: a connection's read deadline is set while a body is being read and at no other time, so that an answer may take as long
// as it has to. What was reserved is given back when the request is over.
//
// Failure: a cut body reads as an error; the connection is not used again.
package intake
