/* GRE of calls rewritten where it lies, as `GreQueue` does it in Python.
 *
 * Built where the package is compiled (setup.py); what it does is what
 * `GreQueue._make_judge` says, and tests/adapters/test_gre_queue.py holds the two against
 * each other.  It keeps nothing: legs, rows, counts and memory are Python's, and whatever has
 * not the usual form is left to Python.  No octet is read before the message is known to hold it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#define PACKET_MESSAGE (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET)
#define ATTRIBUTES (NLMSG_HDRLEN + sizeof(struct nfgenmsg))
#define DATAGRAM (1 << 16) /* octets of verdicts in one send */
#define IP_HEADER 20
#define SHORTEST (IP_HEADER + 8) /* with GRE and its key */
#define NAME 10 /* source, destination, key: by which a leg is found */
#define PLACE ((1UL << 30) - 1) /* of a leg's note in Python, the bits that say where its row is */

/* What stands ahead of a packet that is given back; its payload's header is the kernel's own. */
struct verdict {
    struct nlmsghdr head;
    struct nfgenmsg about;
    struct nlattr judgement_head;
    struct nfqnl_msg_verdict_hdr judgement;
    struct nlattr mark_head;
    uint32_t mark; /* network order */
};
#define BEGINS (sizeof(struct verdict) + NLA_HDRLEN) /* where a packet can begin at the earliest */

/* A row of `pptp_nat.linux.leg_table`. */
struct row {
    uint64_t packets, octets;
    uint16_t delta;
    uint8_t key[2], addresses[8];
    uint32_t mark; /* host order */
    uint8_t again, room[7];
};
_Static_assert(sizeof(struct row) == 40 && sizeof(struct verdict) == 40, "as Python packs them");

struct packet {
    uint8_t *octets;
    uint32_t size, id, mark; /* octets; network order; host order */
    uint8_t hook;
};

/* Find the packet in a message of at most *room* octets.  Whether it has the usual form. */
static int find(uint8_t *message, size_t room, uint32_t most, struct packet *found)
{
    struct nlmsghdr head;
    memcpy(&head, message, sizeof head);
    if (head.nlmsg_type != PACKET_MESSAGE || head.nlmsg_len > room)
        return 0;
    size_t at = ATTRIBUTES, end = head.nlmsg_len;
    int is_named = 0;
    found->mark = 0;
    while (at + NLA_HDRLEN <= end) {
        struct nlattr attribute;
        memcpy(&attribute, message + at, sizeof attribute);
        const uint8_t *value = message + at + NLA_HDRLEN;
        size_t size = attribute.nla_len - (size_t)NLA_HDRLEN;
        if (attribute.nla_len < NLA_HDRLEN || at + attribute.nla_len > end)
            return 0;
        if (attribute.nla_type == NFQA_PACKET_HDR && size >= sizeof(struct nfqnl_msg_packet_hdr)) {
            memcpy(&found->id, value, sizeof found->id);
            found->hook = value[offsetof(struct nfqnl_msg_packet_hdr, hook)];
            is_named = 1;
        } else if (attribute.nla_type == NFQA_MARK && size >= sizeof found->mark) {
            memcpy(&found->mark, value, sizeof found->mark);
            found->mark = ntohl(found->mark);
        } else if (attribute.nla_type == NFQA_PAYLOAD) {
            const uint8_t *gre = value + IP_HEADER;
            found->octets = message + at + NLA_HDRLEN;
            found->size = (uint32_t)size;
            return is_named && at + NLA_HDRLEN >= BEGINS && size >= SHORTEST && size < most &&
                   value[0] == 0x45 && (gre[0] & ~0x10) == 0x20 && (gre[1] & ~0x80) == 0x01 &&
                   gre[2] == 0x88 && gre[3] == 0x0B;
        }
        at += NLA_ALIGN(attribute.nla_len);
    }
    return 0;
}

/* Write a packet's new octets as *row* has them; count it. */
static void rewrite(const struct packet *packet, struct row *row)
{
    uint16_t check;
    memcpy(&check, packet->octets + 10, sizeof check);
    uint32_t sum = 0xFFFFu - check + row->delta;
    if (sum > 0xFFFF)
        sum -= 0xFFFF;
    check = (uint16_t)(0xFFFF - sum);
    memcpy(packet->octets + 10, &check, sizeof check);
    memcpy(packet->octets + 12, row->addresses, sizeof row->addresses);
    memcpy(packet->octets + 26, row->key, sizeof row->key);
    row->packets++;
    row->octets += packet->size;
}

/* The row of the leg *name*; NULL without an error set: there is none. */
static struct row *leg_of(PyObject *name, PyObject *notes, const Py_buffer *rows)
{
    PyObject *note = PyDict_GetItemWithError(notes, name);
    if (!note)
        return NULL;
    Py_ssize_t at = (Py_ssize_t)(PyLong_AsUnsignedLongMask(note) & PLACE);
    if (!at)
        return NULL;
    if (at > rows->len - (Py_ssize_t)sizeof(struct row)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_IndexError, "a leg's row is not in the table");
        return NULL;
    }
    return (struct row *)((uint8_t *)rows->buf + at);
}

struct work {
    PyObject *notes, *seconds, *must_drop;
    Py_buffer octets, pieces, rows, between;
    Py_ssize_t room;
    unsigned int repeat_mark, most;
};

/* Judge one message; return the octets of its verdict, 0: this one is for Python. */
static size_t judge(const struct work *work, Py_ssize_t n, struct iovec *piece)
{
    struct packet packet = {0};
    uint8_t *message = (uint8_t *)work->octets.buf + n * work->room;
    if (!find(message, (size_t)work->room, work->most, &packet))
        return 0;
    uint8_t key[NAME];
    memcpy(key, packet.octets + 12, 8);
    memcpy(key + 8, packet.octets + 26, 2);
    PyObject *name = PyBytes_FromStringAndSize((const char *)key, NAME);
    if (!name)
        return 0;
    struct row *row = leg_of(name, work->notes, &work->rows);
    int is_left = PyErr_Occurred() || (!row && PyDict_Contains(work->seconds, name));
    Py_DECREF(name);
    if (is_left)
        return 0;

    struct verdict verdict;
    uint32_t code = NF_REPEAT, mark = packet.mark;
    size_t size = sizeof verdict;
    if (row) {
        mark = row->mark ? row->mark : mark;
        mark |= row->again ? 0 : work->repeat_mark;
        size += NLA_HDRLEN + packet.size;
    } else {
        PyObject *must = PyObject_CallFunction(work->must_drop, "i", packet.hook);
        if (!must)
            return 0;
        code = must == Py_True ? NF_DROP : NF_ACCEPT;
        Py_DECREF(must);
    }
    uint8_t *start = packet.octets - BEGINS;
    memcpy((uint8_t *)&verdict + offsetof(struct nlmsghdr, nlmsg_type), work->between.buf,
           (size_t)work->between.len);
    verdict.head.nlmsg_len = (uint32_t)size;
    verdict.judgement.verdict = htonl(code);
    verdict.judgement.id = packet.id;
    verdict.mark_head = (struct nlattr){sizeof verdict.mark + NLA_HDRLEN, NFQA_MARK};
    verdict.mark = htonl(mark);
    if (row)
        rewrite(&packet, row);
    memcpy(start, &verdict, sizeof verdict);
    *piece = (struct iovec){start, NLMSG_ALIGN(size)};
    return piece->iov_len;
}

static const char judge_doc[] =
    "rewrite(octets, room, pieces, first, count, notes, rows, seconds, must_drop, between, "
    "repeat_mark, most)\n--\n\n"
    "Judge the messages from *first* on, of *count*, each in a *room* of *octets*.\n\n"
    "Return the number of the first that is not of the usual form, *count* if all are, and\n"
    "where among the *pieces* each datagram of verdicts ends.";

static PyObject *rewrite_run(PyObject *module, PyObject *args)
{
    struct work work;
    Py_ssize_t n, count;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*nw*nnO!w*O!Oy*II", &work.octets, &work.room, &work.pieces, &n,
                          &count, &PyDict_Type, &work.notes, &work.rows, &PyDict_Type,
                          &work.seconds, &work.must_drop, &work.between, &work.repeat_mark,
                          &work.most))
        return NULL;
    PyObject *ends = PyList_New(0), *answer = NULL;
    Py_ssize_t given = 0, ready = 0;
    struct iovec *pieces = work.pieces.buf;
    if (n < 0 || n > count || work.room < NLMSG_HDRLEN || count > work.octets.len / work.room ||
        count - n > work.pieces.len / (Py_ssize_t)sizeof *pieces ||
        (size_t)work.between.len != offsetof(struct verdict, judgement) - sizeof(uint32_t)) {
        PyErr_SetString(PyExc_ValueError, "so much memory is not there");
        goto out;
    }
    for (; ends && n < count; n++) {
        Py_ssize_t size = (Py_ssize_t)judge(&work, n, &pieces[given]);
        if (!size) {
            PyErr_Clear(); /* Python judges this one, and raises it again */
            break;
        }
        if (ready && ready + size > DATAGRAM) {
            PyObject *end = PyLong_FromSsize_t(given);
            if (!end || PyList_Append(ends, end))
                Py_CLEAR(ends);
            Py_XDECREF(end);
            ready = 0;
        }
        given++;
        ready += size;
    }
    if (ends && given) {
        PyObject *end = PyLong_FromSsize_t(given);
        if (!end || PyList_Append(ends, end))
            Py_CLEAR(ends);
        Py_XDECREF(end);
    }
    if (ends)
        answer = Py_BuildValue("nO", n, ends);
out:
    Py_XDECREF(ends);
    PyBuffer_Release(&work.octets);
    PyBuffer_Release(&work.pieces);
    PyBuffer_Release(&work.rows);
    PyBuffer_Release(&work.between);
    return answer;
}

static PyMethodDef methods[] = {{"rewrite", rewrite_run, METH_VARARGS, judge_doc}, {0}};
static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "gre_rewriting", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit_gre_rewriting(void)
{
    return PyModule_Create(&definition);
}
