// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The messages of ZDS in the bytes of protobuf, both ways. */
#include <string.h>
#include "inpod.h"

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct reader {
	const uint8_t *at, *end;
};

struct field {
	unsigned int number;
	struct reader bytes; /* of WIRE_BYTES alone */
	bool has_bytes;
};

static bool read_varint(struct reader *reader, uint64_t *value)
{
	*value = 0;
	for (int shift = 0; shift < 64 && reader->at < reader->end; shift += 7) {
		uint8_t byte = *reader->at++;

		*value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return true;
	}
	return false;
}

static bool skip(struct reader *reader, uint64_t len)
{
	if (len > (uint64_t)(reader->end - reader->at))
		return false;
	reader->at += len;
	return true;
}

/* False at a fault; the end is asked for beforehand. */
static bool read_field(struct reader *reader, struct field *field)
{
	uint64_t tag, value;

	memset(field, 0, sizeof(*field));
	if (!read_varint(reader, &tag) || tag >> 3 == 0 || tag >> 32)
		return false;
	field->number = tag >> 3;
	switch (tag & 7) {
	case WIRE_VARINT: return read_varint(reader, &value);
	case WIRE_64: return skip(reader, 8);
	case WIRE_32: return skip(reader, 4);
	case WIRE_BYTES: break;
	default: return false;
	}
	if (!read_varint(reader, &value))
		return false;
	field->has_bytes = true;
	field->bytes.at = reader->at;
	if (!skip(reader, value))
		return false;
	field->bytes.end = reader->at;
	return true;
}

static bool take_text(const struct field *field, char text[ZDS_MAX])
{
	size_t len = field->bytes.end - field->bytes.at;

	if (!field->has_bytes || len >= ZDS_MAX || memchr(field->bytes.at, 0, len))
		return false;
	memcpy(text, field->bytes.at, len);
	text[len] = 0;
	return true;
}

static bool decode_names(struct reader reader, struct zds_message *message)
{
	struct field field;
	bool ok = true;

	while (ok && reader.at < reader.end) {
		ok = read_field(&reader, &field);
		if (ok && field.number == 1)
			ok = take_text(&field, message->name);
		else if (ok && field.number == 2)
			ok = take_text(&field, message->namespace);
		else if (ok && field.number == 3)
			ok = take_text(&field, message->account);
	}
	message->has_names = true;
	return ok;
}

/* Of Add, Del and Keep; Del alone has its uid in the second field. */
static bool decode_body(struct reader reader, struct zds_message *message)
{
	const unsigned int uid = message->kind == ZDS_DEL ? 2 : 1;
	struct field field;
	bool ok = true;

	while (ok && reader.at < reader.end) {
		ok = read_field(&reader, &field);
		if (ok && field.number == uid)
			ok = take_text(&field, message->uid);
		else if (ok && field.number == 2 && message->kind == ZDS_ADD)
			ok = field.has_bytes && decode_names(field.bytes, message);
	}
	return ok;
}

bool decode_message(const uint8_t *bytes, size_t len, struct zds_message *message)
{
	struct reader reader = { bytes, bytes + len };
	struct field field;
	bool found = false;

	memset(message, 0, sizeof(*message));
	while (reader.at < reader.end) {
		if (!read_field(&reader, &field))
			return false;
		switch (field.number) {
		case 1: message->kind = ZDS_ADD; break;
		case 2: message->kind = ZDS_DEL; break;
		case 3: message->kind = ZDS_SNAPSHOT; break;
		case 5: message->kind = ZDS_KEEP; break;
		default: continue;
		}
		found = true;
		if (!field.has_bytes || !decode_body(field.bytes, message))
			return false;
	}
	return found;
}

/* False where there is no acknowledgement; the error is empty without one. */
bool decode_ack(const uint8_t *bytes, size_t len, char error[ZDS_MAX])
{
	struct reader reader = { bytes, bytes + len }, body;
	struct field field;
	bool found = false;

	error[0] = 0;
	while (reader.at < reader.end) {
		if (!read_field(&reader, &field))
			return false;
		if (field.number != 1 || !field.has_bytes)
			continue;
		found = true;
		for (body = field.bytes; body.at < body.end;) {
			if (!read_field(&body, &field))
				return false;
			if (field.number == 1 && !take_text(&field, error))
				return false;
		}
	}
	return found;
}

/* Writers go from the end to the front, so that each length is known when its turn comes. */
struct writer {
	uint8_t bytes[ZDS_MAX];
	size_t begin;
};

static void put(struct writer *writer, const void *bytes, size_t len)
{
	if (len > writer->begin)
		misuse("a message of ZDS is longer than %d bytes", ZDS_MAX);
	writer->begin -= len;
	memcpy(writer->bytes + writer->begin, bytes, len);
}

/* Puts its tag and length before what was put since `end`. */
static void put_head(struct writer *writer, unsigned int number, size_t end)
{
	size_t len = end - writer->begin;
	uint8_t head[3] = { number << 3 | WIRE_BYTES, len & 0x7f };

	if (len < 0x80)
		return put(writer, head, 2);
	head[1] |= 0x80;
	head[2] = len >> 7;
	put(writer, head, 3);
}

static void put_text(struct writer *writer, unsigned int number, const char *text)
{
	size_t end = writer->begin;

	if (!*text)
		return;
	put(writer, text, strlen(text));
	put_head(writer, number, end);
}

static void finish(const struct writer *writer, struct zds_packet *packet)
{
	packet->len = ZDS_MAX - writer->begin;
	memcpy(packet->bytes, writer->bytes + writer->begin, packet->len);
}

void encode_message(const struct zds_message *message, struct zds_packet *packet)
{
	static const unsigned int numbers[] = {
		[ZDS_ADD] = 1,
		[ZDS_DEL] = 2,
		[ZDS_SNAPSHOT] = 3,
		[ZDS_KEEP] = 5,
	};
	struct writer writer = { .begin = ZDS_MAX };

	if (message->has_names) {
		put_text(&writer, 3, message->account);
		put_text(&writer, 2, message->namespace);
		put_text(&writer, 1, message->name);
		put_head(&writer, 2, ZDS_MAX);
	}
	put_text(&writer, message->kind == ZDS_DEL ? 2 : 1, message->uid);
	put_head(&writer, numbers[message->kind], ZDS_MAX);
	finish(&writer, packet);
}

void encode_ack(const char *error, struct zds_packet *packet)
{
	struct writer writer = { .begin = ZDS_MAX };

	put_text(&writer, 1, error);
	put_head(&writer, 1, ZDS_MAX);
	finish(&writer, packet);
}
